// This file is empty; it lets pin.go declare a function that is linked to the runtime's.
