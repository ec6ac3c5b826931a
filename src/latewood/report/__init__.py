"""What runs amount to: a summary of each method, a table for the terminal, one self-contained HTML page."""
