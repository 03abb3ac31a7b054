"""A report as one HTML page: template, charts, pictures, scales."""
