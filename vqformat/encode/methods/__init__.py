"""The coding methods: those of Gong et al. 2014, and lossless and uniform ones. They turn a matrix into stages."""
