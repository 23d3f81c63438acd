"""The methods of Gong et al. 2014 and the plain ones: from a matrix to quantized stages."""
