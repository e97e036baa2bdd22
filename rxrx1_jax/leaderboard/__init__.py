"""Methods x folds x seeds -> one page that says which of them help."""
