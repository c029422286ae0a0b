package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestMemoryOfSD1 draws a picture of 512 by 512 with a Stable Diffusion 1 of the true size on made-up weights of 16 bits, in a
// process of its own, and holds the most memory that it ever had below 4 GB. It writes 2.1 GB under the temporary folder.
func TestMemoryOfSD1(t *testing.T) {
	root := os.Getenv("DRIFT_FIXTURES")
	if root == "" || os.Getenv("DRIFT_SLOW") == "" {
		t.Skip("takes long, and needs configurations: set DRIFT_SLOW=1 and DRIFT_FIXTURES")
	}
	dir := t.TempDir()
	plan, full := filepath.Join(dir, "plan"), filepath.Join(dir, "full")
	from := filepath.Join(root, "models", "pipe-sd1")
	copyText := func(src, dst string) {
		t.Helper()
		b, err := os.ReadFile(src)
		if err == nil {
			if err = os.MkdirAll(filepath.Dir(dst), 0o777); err == nil {
				err = os.WriteFile(dst, b, 0o666)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json",
		"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json"} {
		copyText(filepath.Join(from, name), filepath.Join(plan, name))
	}
	for part, name := range map[string]string{"unet": "sd15-unet", "vae": "sd15-vae"} {
		copyText(filepath.Join(root, "files", "configs", name+".model.json"), filepath.Join(plan, part, "config.json"))
	}
	b, err := os.ReadFile(filepath.Join(from, "text_encoder", "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var text map[string]any
	if err := json.Unmarshal(b, &text); err != nil {
		t.Fatal(err)
	}
	for key, n := range map[string]int{"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 49408, "projection_dim": 768} {
		text[key] = n
	}
	if b, err = json.Marshal(text); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(plan, "text_encoder"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(plan, "text_encoder", "config.json"), b, 0o666); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) int64 {
		t.Helper()
		c := exec.Command("drift", args...)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("drift %s: %v: %s", strings.Join(args, " "), err, out)
		}
		return c.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
	}
	if peak := run("model", "random", plan, full, "--dtype", "f16"); peak > 1<<30 {
		t.Errorf("writing the weights took %d bytes", peak)
	}
	for _, dtype := range []string{"f32", "bf16"} {
		peak := run("sample", "--model", full, "--dtype", dtype, "--prompt", "a cat", "--steps", "1", "-W", "512", "-H", "512", "--count", "1", "--out", filepath.Join(dir, dtype+".png"), "--quiet")
		t.Logf("%s: %.2f GB", dtype, float64(peak)/1e9)
		if peak > 4e9 {
			t.Errorf("%s: %d bytes, 4e9 are allowed", dtype, peak)
		}
	}
}
