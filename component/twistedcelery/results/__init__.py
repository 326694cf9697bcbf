"""Who waits for which task, results by id, and the results of canvases."""
