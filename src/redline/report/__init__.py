"""Records in, pages out: the terminal table and the self-contained HTML file."""
