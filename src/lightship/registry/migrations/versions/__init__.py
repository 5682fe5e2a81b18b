"""One file a schema revision; a file that was released is never changed."""
