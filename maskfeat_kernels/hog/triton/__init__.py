"""HOG on Triton: ``launch`` has the ops, ``cells`` the kernel of MASKFEAT, ``votes`` and ``blocks`` the others."""
