"""What kinds of work there are. Each domain knows its own words; none knows another."""
