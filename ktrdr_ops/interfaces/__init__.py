"""The doors. Law: they see the application and core; a domain's words reach them only from what it registers."""
