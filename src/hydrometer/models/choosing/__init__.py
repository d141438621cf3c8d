"""Laws that choose rows among candidates."""
