"""What every command stands on: its configuration, its terminal, joining or starting Ray, sizing workers."""
