"""The report of a release or of a refusal: one HTML file, and its JSON twin."""
