// The weight-stationary grid of ROWS x COLS cells with the skew at its edges, and the row-sum column.
//
// What enters in cycle t reaches the cell of row r and column c in cycle t + r + c. The sums of column c stand below it from
// cycle t + ROWS + c, those of the row-sum column from cycle t + ROWS.

module npu_ws_array
  import npu_machine::*;
  import npu_types::*;
(
    input  logic                                    clk,
    input  stream_t                                 stream,
    input  logic        [      ROWS*ACT_BITS-1:0]   act,         // lane r: row r
    input  logic        [            COLS*16-1:0]   weight,      // lane c: column c
    output logic        [     COLS*PSUM_BITS-1:0]   psum,
    output logic signed [        SUM_PSUM_BITS-1:0] row_sum
);
  for (genvar r = 0; r < ROWS; r++) begin : g_row
    stream_t edge_stream;
    logic [ACT_BITS-1:0] edge_act;
    logic signed [SUM_PSUM_BITS-1:0] sum;

    if (r == 0) begin : g_top
      assign edge_stream = stream;
    end else begin : g_next
      always_ff @(posedge clk) edge_stream <= g_row[r-1].edge_stream;
    end
    npu_delay #(.BITS(ACT_BITS), .DEPTH(r)) skew (.clk, .in(act[r*ACT_BITS+:ACT_BITS]), .out(edge_act));

    if (ROW_SUM_COLUMN) begin : g_sum
      wire signed [SUM_PSUM_BITS-1:0] above;
      if (r == 0) begin : g_top
        assign above = '0;
      end else begin : g_next
        assign above = g_row[r-1].sum;
      end
      npu_ws_row_sum_cell cell_i (.clk, .w_high(edge_stream.w_high), .act(edge_act), .sum_in(above), .sum_out(sum));
    end else begin : g_no_sum
      assign sum = '0;
    end

    for (genvar c = 0; c < COLS; c++) begin : g_col
      stream_t stream_in, stream_out;
      logic [ACT_BITS-1:0] act_in, act_out;
      logic [15:0] weight_in, weight_out;
      logic signed [PSUM_BITS-1:0] psum_in, psum_out;

      if (c == 0) begin : g_left
        assign stream_in = edge_stream;
        assign act_in = edge_act;
      end else begin : g_inner
        assign stream_in = g_row[r].g_col[c-1].stream_out;
        assign act_in = g_row[r].g_col[c-1].act_out;
      end
      if (r == 0) begin : g_top
        npu_delay #(.BITS(16), .DEPTH(c)) skew (.clk, .in(weight[c*16+:16]), .out(weight_in));
        assign psum_in = '0;
      end else begin : g_below
        assign weight_in = g_row[r-1].g_col[c].weight_out;
        assign psum_in = g_row[r-1].g_col[c].psum_out;
      end
      npu_ws_cell cell_i (
          .clk, .stream_in, .stream_out, .act_in, .act_out, .weight_in, .weight_out, .psum_in, .psum_out
      );
    end
  end

  for (genvar c = 0; c < COLS; c++) begin : g_bottom
    assign psum[c*PSUM_BITS+:PSUM_BITS] = g_row[ROWS-1].g_col[c].psum_out;
  end
  assign row_sum = g_row[ROWS-1].sum;
endmodule
