"""Predictions, samples and likelihoods from any model of the contract."""
