"""Any public layout of RxRx1, downloaded or not, as one validated table of sites."""
