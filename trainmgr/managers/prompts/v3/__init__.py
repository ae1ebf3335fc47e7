"""The prompt until November 2026, and the schema that was made anew for each answer: for logs of that time."""
