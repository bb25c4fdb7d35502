"""What Lading costs, measured: `make bench`. It prints tables, and is never a timed test."""
