"""One page a file, each a function `page(folder)`."""
