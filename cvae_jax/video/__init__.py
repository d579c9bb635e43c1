"""Video prediction: how good predicted frames are, and their figures."""
