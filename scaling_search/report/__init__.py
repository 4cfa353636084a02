"""The report's page and the dashboard: words, tables, figures."""
