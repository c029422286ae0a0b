package schedules

import (
	"errors"
	"strings"
	"testing"

	"drift/internal/refuse"
)

func TestParseProcess(t *testing.T) {
	for in, want := range map[string]string{
		`{"type":"vp-linear"}`:                                  `{"type":"vp-linear","beta_min":0.1,"beta_max":20}`,
		`{"type":"vp-linear","beta_min":0,"beta_max":3.5}`:      `{"type":"vp-linear","beta_min":0,"beta_max":3.5}`,
		`{"beta_max":10,"type":"sub-vp"}`:                       `{"type":"sub-vp","beta_min":0.1,"beta_max":10}`,
		`{"type":"cosine"}`:                                     `{"type":"cosine"}`,
		`{"type":"ve"}`:                                         `{"type":"ve","sigma_min":0.01,"sigma_max":50}`,
		`{"type":"ve-geometric","sigma_max":348}`:               `{"type":"ve-geometric","sigma_min":0.01,"sigma_max":348}`,
		`{"type":"edm"}`:                                        `{"type":"edm","sigma_min":0.002,"sigma_max":80}`,
		`{"type":"flow"}`:                                       `{"type":"flow"}`,
		`{"type":"trig"}`:                                       `{"type":"trig"}`,
		`{"type":"vp-discrete"}`:                                `{"type":"vp-discrete","beta_schedule":"linear","beta_start":0.0001,"beta_end":0.02,"num_train_timesteps":1000,"rescale_betas_zero_snr":false}`,
		`{"type":"vp-discrete","beta_schedule":"cosine"}`:       `{"type":"vp-discrete","beta_schedule":"squaredcos_cap_v2","num_train_timesteps":1000,"rescale_betas_zero_snr":false}`,
		`{"type":"vp-discrete","trained_betas":[0.1,0.2,1e-1]}`: `{"type":"vp-discrete","trained_betas":[0.1,0.2,0.1],"num_train_timesteps":3,"rescale_betas_zero_snr":false}`,
		`{"type":"vp-discrete","beta_start":0.00085,"beta_end":0.012,"beta_schedule":"scaled_linear","num_train_timesteps":100,"rescale_betas_zero_snr":true}`: `{"type":"vp-discrete","beta_schedule":"scaled_linear","beta_start":0.00085,"beta_end":0.012,"num_train_timesteps":100,"rescale_betas_zero_snr":true}`,
	} {
		p, err := ParseProcess([]byte(in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		out, err := MarshalProcess(p)
		if err != nil || string(out) != want {
			t.Errorf("%s written as %s, %v, want %s", in, out, err, want)
		}
		again, err := ParseProcess(out)
		if err != nil || !Same(p, again) {
			t.Errorf("%s does not come back: %v", out, err)
		}
	}
	for _, p := range every(t) {
		if text, err := MarshalProcess(p); err == nil {
			q, err := ParseProcess(text)
			if err != nil || !Same(p, q) || q.At(0.3) != p.At(0.3) {
				t.Errorf("%s: %v", text, err)
			}
		} else if _, ok := p.(Interpolant); !ok {
			t.Error(err)
		}
	}
	if Same(VPLinear{}, VPLinear{0.1, 19}) || Same(VE{}, EDM{}) || Same(Interpolant{}, Interpolant{}) || !Same(VPLinear{}, VPLinear{0.1, 20}) {
		t.Error("Same is wrong")
	}
}

func TestParseProcessRefuses(t *testing.T) {
	for in, want := range map[string]string{
		`{}`:                                                "wants a type",
		`{"type":"vp-liner"}`:                               `unknown process "vp-liner"; did you mean vp-linear?`,
		`{"type":5}`:                                        "type: want a text",
		`{"type":"flow","t":1}`:                             `no parameter "t"`,
		`{"type":"cosine","Type":"flow"}`:                   `no parameter "Type"`,
		`{"type":"vp-linear","beta_mx":3}`:                  `no parameter "beta_mx"; did you mean beta_max`,
		`{"type":"vp-linear","beta_min":"x"}`:               "beta_min: want a number",
		`{"type":"vp-linear","beta_min":30}`:                "beta_min 30 and beta_max 20",
		`{"type":"vp-linear","beta_min":1e999}`:             "beta_min is 1e999",
		`{"type":"ve","sigma_min":0}`:                       "sigma_min 0 and sigma_max 50",
		`{"type":"ve","type":"flow"}`:                       "type",
		`{"type":"vp-discrete","num_train_timesteps":2.5}`:  "whole number",
		`{"type":"vp-discrete","num_train_timesteps":1e9}`:  "num_train_timesteps is 1e9",
		`{"type":"vp-discrete","trained_betas":[0.1,"x"]}`:  "trained_betas[1]: want a number",
		`{"type":"vp-discrete","trained_betas":[0.1,2]}`:    "beta 1 is 2",
		`{"type":"vp-discrete","beta_schedule":"cos"}`:      `unknown beta schedule "cos"`,
		`{"type":"vp-discrete","rescale_betas_zero_snr":1}`: "want true or false",
		`[]`: "",
		``:   "",
	} {
		_, err := ParseProcess([]byte(in))
		var refused *refuse.Error
		if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, &refused) {
			t.Errorf("%s: error %v, want %q", in, err, want)
		}
	}
}

func FuzzParseProcess(f *testing.F) {
	f.Add([]byte(`{"type":"vp-linear","beta_min":0.1,"beta_max":20}`))
	f.Add([]byte(`{"type":"vp-discrete","trained_betas":[0.1,0.2],"rescale_betas_zero_snr":true}`))
	f.Add([]byte(`{"type":"edm","sigma_max":1e3}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParseProcess(text)
		if err != nil {
			return
		}
		out, err := MarshalProcess(p)
		if err != nil {
			t.Fatal(err)
		}
		q, err := ParseProcess(out)
		if err != nil || !Same(p, q) {
			t.Fatalf("%s came back as %v, %v", out, q, err)
		}
	})
}
