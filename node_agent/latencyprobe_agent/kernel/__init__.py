"""The kernel side: types from BTF, the compiler process, hooks, maps, and the engine over them."""
