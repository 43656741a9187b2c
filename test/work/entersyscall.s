// An assembly file, though an empty one, lets Go declare a function without a body: runtime.entersyscall.
