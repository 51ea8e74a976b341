"""The application: configuration in, a run's folder out. The only room that knows Hydra."""
