"""What estimates of log p(y|x), their errors and their flags are worth, where the truth is known."""
