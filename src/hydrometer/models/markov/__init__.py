"""n-gram chains with an end of sequence."""
