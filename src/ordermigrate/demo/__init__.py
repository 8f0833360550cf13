"""Two real PostgreSQL servers, a monolith under live traffic, the whole story told on them."""
