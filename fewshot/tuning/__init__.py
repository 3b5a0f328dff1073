"""Hyper-parameters chosen or learned on validation classes; returns data, which `reporting` prints."""
