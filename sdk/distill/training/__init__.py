"""Teaching a student: what it learns from, how far it is wrong, the steps, and what is kept of them."""
