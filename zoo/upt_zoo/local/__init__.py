"""One store on a disk: what is in it, how it changes, how it is kept whole."""
