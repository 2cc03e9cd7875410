"""Where images come from: storage by URI, listing, allowed roots."""
