// Package diffusers reads networks and schedulers as the diffusers library
// lays them out on disk: a folder or a repository with model_index.json,
// config.json, scheduler_config.json and safetensors files.
package diffusers

// Weights gives the tensors of one network by name.
type Weights interface {
	// Names lists the tensors the configuration asks for (legacy names are
	// already translated), in module order.
	Names() []string
	// Shape returns the shape of a tensor, and whether there is one.
	Shape(name string) ([]int, bool)
	// Float32 reads one tensor, row-major, widened or narrowed to float32.
	// The slice belongs to the caller.
	Float32(name string) ([]float32, error)
}
