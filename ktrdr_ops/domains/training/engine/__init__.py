"""What only training needs: strategies, the host's sessions, models, and where their data came from."""
