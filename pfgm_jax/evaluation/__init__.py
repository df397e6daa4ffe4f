"""What is measured of runs, of anyone's images, and of data sets."""
