"""The report: one HTML file about one run, with its figures as PNG and their data as CSV. See README.md."""
