"""The theory behind the certificates: localisation, degradation under a misfit, normality, sample complexity."""
