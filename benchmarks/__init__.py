"""Speed against what a user would pick instead, run by hand from the repository's root; see README.md."""
