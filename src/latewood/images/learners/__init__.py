"""One file for each method, named as the method is called; each reads like its paper."""
