package bench

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"html/template"
	"image/png"
	"io"
	"math"
	"slices"

	"drift/internal/pixels"
)

// page writes the report as one file that needs nothing else: plots and pictures stand in it, and its policy forbids
// the browser to load anything. Its table is sorted by clicking a head, or by #sort=COLUMN in the address.
func page(w io.Writer, r Report, rows []Row) error {
	type value struct {
		Text string
		Sort float64
	}
	type line struct {
		Model, Sampler, Schedule, Guiders, Status string
		Budget, Steps                             string
		Settings                                  []string
		NFE, Time                                 value
		Scores                                    []value
		Sheet                                     template.URL
		Alt                                       string
	}
	data := struct {
		Settings []string
		Columns  []string
		Lines    []line
		Plots    []template.HTML
		Notes    string
		Count    int
		Version  string
	}{Settings: r.settings(), Columns: r.Columns(), Notes: r.notes(), Count: r.Matrix.Count, Version: r.Version}
	rows = slices.DeleteFunc(slices.Clone(rows), func(x Row) bool { return x.Cell.Baseline != "" || x.Cell.Limit })
	if r.Matrix.Baseline != "" {
		data.Columns = nil
		for _, col := range r.Columns() {
			data.Columns = append(data.Columns, col, col+" "+r.Matrix.Baseline)
		}
	}
	for i, c := range r.Cells {
		l := line{Model: c.Model, Sampler: c.Sampler, Schedule: c.Schedule, Guiders: c.Guiders, Budget: positive(c.Budget), Steps: positive(c.Steps)}
		if c.Status != statusDone {
			l.Status = c.Status
		}
		l.NFE = value{number(c.NFE), c.NFE}
		for _, flag := range data.Settings {
			l.Settings = append(l.Settings, c.setting(flag))
		}
		score := func(c ReportCell, col string) {
			v := value{"", math.MaxFloat64}
			if s, ok := c.Score(col); ok {
				v = value{short(s.Number(col)), s.Number(col)}
				if e := stderrOf(s, col, short); e != "" {
					v.Text += " ± " + e
				}
			}
			l.Scores = append(l.Scores, v)
		}
		for _, col := range r.Columns() {
			score(c, col)
			if r.Matrix.Baseline != "" {
				score(c.base(), col)
			}
		}
		if i < len(rows) {
			if t := rows[i].Time; t.Images > 0 {
				ms := 1000 * t.Seconds / float64(t.Images)
				l.Time = value{short(ms), ms}
			}
			if len(rows[i].Sheet) > 0 {
				url, err := sheetURL(rows[i])
				if err != nil {
					return err
				}
				l.Sheet, l.Alt = url, fmt.Sprintf("first pictures of %s %s", c.Name(), c.At())
			}
		}
		data.Lines = append(data.Lines, l)
	}
	inline := func(fill func(io.Writer) error) error {
		var b bytes.Buffer
		err := fill(&b)
		data.Plots = append(data.Plots, template.HTML(inlineSVG(b.String()))) // made by us of numbers; its texts were escaped by the drawing
		return err
	}
	columns := r.Columns()
	for _, col := range columns {
		if err := inline(func(w io.Writer) error { return drawPlot(w, r, col, ".svg") }); err != nil {
			return err
		}
		if r.Matrix.Verb != "" && r.mapped(col) {
			if err := inline(func(w io.Writer) error { return r.heat(w, col, ".svg") }); err != nil {
				return err
			}
		}
	}
	if r.Matrix.Verb != "" && r.faced(columns) {
		if err := inline(func(w io.Writer) error { return r.pareto(w, columns[0], columns[1], ".svg") }); err != nil {
			return err
		}
	}
	return pageTemplate.Execute(w, data)
}

// sheetURL is the sheet of a row's first pictures as data.
func sheetURL(r Row) (template.URL, error) {
	shape := r.subject.Model.Info.Image()
	if r.Cell.open != nil {
		shape = r.facts.Shape
	}
	size := shape[0] * shape[1] * shape[2]
	var pictures [][]byte
	for k := 0; k+size <= len(r.Sheet); k += size {
		pictures = append(pictures, r.Sheet[k:k+size])
	}
	const cols = 12
	var b bytes.Buffer
	if err := png.Encode(&b, pixels.Sheet(pictures, shape, min(cols, len(pictures)), (len(pictures)+cols-1)/cols)); err != nil {
		return "", err
	}
	return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(b.Bytes())), nil
}

var pageTemplate = template.Must(template.New("report").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>drift bench</title>
<style>
body{font:14px/1.45 system-ui,sans-serif;margin:1.5rem;color:#222;background:#fff}
h1{font-size:1.3rem}h2{font-size:1.05rem;margin-top:2rem}
table{border-collapse:collapse}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}
th button{all:unset;cursor:pointer;font-weight:600}th button:focus-visible{outline:2px solid #36c}
th[aria-sort=ascending] button::after{content:" \25B2"}th[aria-sort=descending] button::after{content:" \25BC"}
td.n{text-align:right;font-variant-numeric:tabular-nums}td.s{color:#a33}
img{image-rendering:pixelated;max-width:none}svg{max-width:100%;height:auto}
pre{white-space:pre-wrap;color:#444}
</style></head><body>
<h1>drift bench</h1>
<p>{{.Count}} samples per cell, the same seeds in every cell. drift {{.Version}}.</p>
{{range .Plots}}<div>{{.}}</div>
{{end}}
<h2>Cells</h2>
<table id="cells"><thead><tr>
<th><button>model</button></th><th><button>sampler</button></th><th><button>schedule</button></th><th><button>guiders</button></th>
{{range .Settings}}<th><button>{{.}}</button></th>{{end}}
<th><button>budget</button></th><th><button>steps</button></th><th><button>nfe</button></th>
{{range .Columns}}<th><button>{{.}}</button></th>{{end}}
<th><button>ms/sample</button></th><th>first samples</th></tr></thead><tbody>
{{range .Lines}}<tr><td>{{.Model}}</td><td>{{.Sampler}}</td><td>{{.Schedule}}</td><td>{{.Guiders}}</td>
{{range .Settings}}<td>{{.}}</td>{{end}}
<td class="n">{{.Budget}}</td><td class="n">{{.Steps}}</td><td class="n" data-v="{{.NFE.Sort}}">{{.NFE.Text}}</td>
{{if .Status}}<td class="s" colspan="{{len $.Columns}}">{{.Status}}</td>{{else}}{{range .Scores}}<td class="n" data-v="{{.Sort}}">{{.Text}}</td>{{end}}{{end}}
<td class="n" data-v="{{.Time.Sort}}">{{.Time.Text}}</td>
<td>{{if .Sheet}}<img src="{{.Sheet}}" alt="{{.Alt}}">{{end}}</td></tr>
{{end}}</tbody></table>
<h2>How to read this</h2>
<pre>{{.Notes}}</pre>
<script>
(function(){
 var table=document.getElementById("cells"),body=table.tBodies[0],heads=[].slice.call(table.tHead.rows[0].cells);
 function cell(row,k){ // a failed cell spans the scores
  var at=0;
  for(var i=0;i<row.cells.length;i++){var span=row.cells[i].colSpan;if(k<at+span)return span>1?null:row.cells[i];at+=span}
  return null;
 }
 function key(row,k){
  var c=cell(row,k);
  if(!c)return null;
  var v=c.hasAttribute("data-v")?c.getAttribute("data-v"):c.textContent.trim();
  if(v==="")return null;
  var n=Number(v);
  return isNaN(n)?v:n;
 }
 function sort(k,down){
  var rows=[].slice.call(body.rows).map(function(r,i){return{r:r,v:key(r,k),i:i}});
  rows.sort(function(a,b){
   if(a.v===null||b.v===null)return(a.v===null)-(b.v===null)||a.i-b.i;
   var c=typeof a.v===typeof b.v?(a.v<b.v?-1:a.v>b.v?1:0):(typeof a.v==="number"?-1:1);
   return(down?-c:c)||a.i-b.i;
  });
  rows.forEach(function(x){body.appendChild(x.r)});
  heads.forEach(function(h,i){if(i===k)h.setAttribute("aria-sort",down?"descending":"ascending");else h.removeAttribute("aria-sort")});
 }
 heads.forEach(function(h,k){
  var b=h.querySelector("button");
  if(b)b.addEventListener("click",function(){sort(k,h.getAttribute("aria-sort")==="ascending")});
 });
 var m=/^#sort=(-?)(.*)$/.exec(decodeURIComponent(location.hash));
 if(m)heads.forEach(function(h,k){if(h.textContent.trim()===m[2])sort(k,m[1]==="-")});
})();
</script>
</body></html>
`))
