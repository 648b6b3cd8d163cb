"""The Reservation API: what it is asked, how it is reached, and what keeps asking until intent and observed agree."""
