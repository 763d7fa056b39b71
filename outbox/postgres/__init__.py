"""All SQL that runs."""
