"""The report: one page with figures and gallery."""
