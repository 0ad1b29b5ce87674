// The output-stationary grid of ROWS x COLS cells with the skew at its edges, and the row-sum column.
//
// What enters in cycle t reaches the cell of row r and column c in cycle t + r + c. A drain that begins in cycle t shows row
// r of column c below the array in cycle t + ROWS + r + c, and the row sums with column 0.

module npu_os_array
  import npu_machine::*;
  import npu_types::*;
(
    input  logic                            clk,
    input  job_t                            job,
    input  edge_t                           feed,
    input  drain_t                          drain,
    input  logic        [      ROWS*16-1:0] act_data,    // lane r: bits of the tile's row r from element k on
    input  logic signed [             16:0] zero_point,  // of the tile's row i, i cycles after its first k
    input  logic        [      COLS*16-1:0] weight,      // lane c: column c
    output logic        [COLS*ACC_BITS-1:0] sums,
    output logic signed [ ROW_SUM_BITS-1:0] row_sum,
    output logic                            overflow
);
  logic [ROWS*COLS-1:0] overflows;
  assign overflow = |overflows;

  for (genvar r = 0; r < ROWS; r++) begin : g_row
    // ---- the left edge: control moves down one row a cycle, the drain's one row in two
    edge_t at;
    drain_t drained;
    if (r == 0) begin : g_top
      assign at = feed;
      assign drained = drain;
    end else begin : g_next
      always_ff @(posedge clk) at <= g_row[r-1].at;
      npu_delay #(.BITS($bits(drain_t)), .DEPTH(2)) slow (.clk, .in(g_row[r-1].drained), .out(drained));
    end
    wire inject = drained.valid && ROW_COUNT_BITS'(r) < drained.rows;

    logic [15:0] bits;
    npu_delay #(.BITS(16), .DEPTH(r)) skew (.clk, .in(act_data[r*16+:16]), .out(bits));

    // Row r's zero point is at the port just when its first element is here.
    logic signed [16:0] kept_zero;
    wire signed [16:0] zero = at.latch ? zero_point : kept_zero;
    always_ff @(posedge clk) kept_zero <= zero;

    wire used = ROW_COUNT_BITS'(r) < at.rows;
    logic [ACT_BITS-1:0] act;
    npu_operand operand (
        .job, .bits, .zero_point(zero), .shift(at.shift),
        .first(at.first && used), .second(at.second && used), .high(at.a_high), .act
    );

    logic signed [ROW_SUM_BITS-1:0] row_sum_below;
    if (ROW_SUM_COLUMN) begin : g_sum
      logic signed [LANE_SUM_BITS-1:0] lanes;
      npu_lane_sum lane_sum (.act, .w_high(at.stream.w_high), .sum(lanes));
      logic signed [ROW_SUM_BITS-1:0] above;
      if (r == 0) begin : g_top
        assign above = '0;
      end else begin : g_next
        assign above = g_row[r-1].row_sum_below;
      end
      npu_os_sum #(  // wide enough never to wrap
          .IN_BITS(LANE_SUM_BITS), .PART_BITS(ROW_SUM_BITS), .BITS(ROW_SUM_BITS), .MODE(WRAP)
      ) total (
          .clk, .control(at.stream.acc), .products(lanes), .capture(at.stream.capture), .inject,
          .above, .below(row_sum_below), .overflow()
      );
    end else begin : g_no_sum
      assign row_sum_below = '0;
    end

    for (genvar c = 0; c < COLS; c++) begin : g_col
      os_stream_t stream_in, stream_out;
      logic inject_in, inject_out;
      logic [ACT_BITS-1:0] act_in, act_out;
      logic [15:0] weight_in, weight_out;
      logic signed [ACC_BITS-1:0] above, below;

      if (c == 0) begin : g_left
        assign {stream_in, inject_in, act_in} = {at.stream, inject, act};
      end else begin : g_inner
        assign stream_in = g_row[r].g_col[c-1].stream_out;
        assign inject_in = g_row[r].g_col[c-1].inject_out;
        assign act_in = g_row[r].g_col[c-1].act_out;
      end
      if (r == 0) begin : g_top
        npu_delay #(.BITS(16), .DEPTH(c)) skew (.clk, .in(weight[c*16+:16]), .out(weight_in));
        assign above = '0;
      end else begin : g_below
        assign weight_in = g_row[r-1].g_col[c].weight_out;
        assign above = g_row[r-1].g_col[c].below;
      end
      npu_os_cell cell_i (
          .clk, .stream_in, .stream_out, .inject_in, .inject_out, .act_in, .act_out, .weight_in, .weight_out,
          .above, .below, .overflow(overflows[r*COLS+c])
      );
    end
  end

  for (genvar c = 0; c < COLS; c++) begin : g_bottom
    assign sums[c*ACC_BITS+:ACC_BITS] = g_row[ROWS-1].g_col[c].below;
  end
  assign row_sum = g_row[ROWS-1].row_sum_below;
endmodule
