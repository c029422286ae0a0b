// Package metrics compares sets of samples, and looks at the paths that made
// them.
//
// The package knows numbers only: a set of samples is a matrix of n rows of d
// features (Samples), in the order the extractor gave them. It opens no files,
// draws nothing by itself and has no state; every random choice comes from a
// source that the caller seeds.
//
// # Streaming
//
// A Metric takes batches with Add and answers with Value. FID and its kin keep
// a Moments accumulator (count, mean, centred second moment; memory d², not n);
// scores that need the samples themselves (KID, precision and recall, ...) are
// a Score and stream through a Collector.
//
// # Errors
//
// Jackknifed adds to a Score the standard error that comes of the generated
// samples, and the values without each block of them: of two sets made with the
// same random numbers, their differences give the error of the difference.
//
// # Accuracy
//
// All sums are float64. Results do not depend on the number of threads, and
// moments do not depend on how rows were split into batches.
//
// # Refusals
//
// A NaN or an infinite feature, a set whose rows are all equal, sets of
// different dimension and statistics of different extractors are errors; fewer
// samples than dimensions is a Warning in the Result, because the number is
// still defined but says little.
package metrics
