"""Results as tables, figures and pages. Nothing is evaluated here but episodes that are drawn."""
