"""What is begun for a person: specifications of given files, and a fit's setting for another trainer."""
