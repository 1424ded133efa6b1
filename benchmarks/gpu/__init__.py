"""Everything that a card is needed for, by one command: checks, then timings."""
