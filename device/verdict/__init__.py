"""From judged cycles to the verdict of a site and of an exam."""
