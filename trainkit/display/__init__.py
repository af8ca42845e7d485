"""What a user sees: lines, bars and tables on the terminal, by rich."""
