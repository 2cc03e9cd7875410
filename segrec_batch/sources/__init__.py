"""Sources of images: storage by URI, listing, allowed roots."""
